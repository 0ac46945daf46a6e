"""What decides: the pipeline that tries what is nominated, checks its effect, and keeps or undoes it."""
