"""What measures hidden layers and nominates merges; nothing here changes a model."""
