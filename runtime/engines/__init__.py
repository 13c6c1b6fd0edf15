"""The engines: models that answer, each behind the same protocol."""
