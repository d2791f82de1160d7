"""Token files of other tools: found, imported and written."""
