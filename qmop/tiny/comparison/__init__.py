"""Methods compared at tiny size: one base, the same pairs and steps, several seeds, and what of it is noise."""
