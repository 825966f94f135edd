"""A comparison as one self-contained HTML page: `write_report` in `page.py`."""
