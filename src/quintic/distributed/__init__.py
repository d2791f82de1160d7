"""Several processes: who is who, their collectives, launch, watchdog and signals."""
