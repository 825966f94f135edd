"""What a float model does on real samples: choosing them, observing, and ranges from what was seen."""
