"""What keeps the two links alive and turns what they say into facts and hints."""
