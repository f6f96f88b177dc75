"""The doors that people and schedulers come in by: one `qmop` command, one module per job."""
