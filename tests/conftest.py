"""Settings of the property tests, chosen by HYPOTHESIS_PROFILE: "quick" (the default) or "slow"."""

import atexit
import os
import shutil
import tempfile

CACHE = tempfile.mkdtemp(prefix="cache-of-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = CACHE  # no test leaves anything in the user's
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything that reads it is imported: no test asks the network

from hypothesis import HealthCheck, settings  # noqa: E402

# How long an example takes says nothing about whether it holds, so there is no deadline.
SLOW_TO_DRAW = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile("quick", max_examples=25, derandomize=True, deadline=None, suppress_health_check=SLOW_TO_DRAW)
settings.register_profile("slow", max_examples=500, deadline=None, suppress_health_check=SLOW_TO_DRAW)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
