"""The packaged reference model: a small QA-ViT with its tokenizer and preprocessing; README.md is its card."""
