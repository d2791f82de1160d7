"""The report of a run, `quintic report`: one file that says what was trained, how well and where
the loss is, for whoever gets it. docs/report.md says what each part means."""
