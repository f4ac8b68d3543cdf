"""Ray Serve with two replicas of an accelerated pipeline and of packages, and a load test that checks every picture."""
