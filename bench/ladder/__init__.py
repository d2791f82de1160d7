"""The ladder to the record: techniques of the speedrun, adopted one at a time."""
