"""Steps that judge, change and compare documents before they are tokenised; `cleaner` is where to start reading."""
