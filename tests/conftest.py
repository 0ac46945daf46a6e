"""Settings shared by all tests."""

import torch
from hypothesis import HealthCheck, settings

settings.register_profile("ci", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")
torch.set_num_threads(1)  # the networks are small, and two threads would wait for each other
