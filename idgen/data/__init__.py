"""Pictures with labels: tables, captions, scenes."""
