"""Metrics: functions of image or point tensors, usable without the trainer."""
