"""What a measurement looks like: figures as PNG, one self-contained HTML page, and lines for the terminal."""
