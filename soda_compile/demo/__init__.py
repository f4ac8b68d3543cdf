"""The demonstration: a small trained model, calibrated, planned, compiled and compared with its rivals."""
