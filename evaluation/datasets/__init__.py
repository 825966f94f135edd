"""Questions with pictures and answers, by a spec such as `easy-vqa:test` or `scenes:7:5000`."""
