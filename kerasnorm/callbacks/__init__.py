"""Callbacks for training."""

from kerasnorm.callbacks.activation_drift import ActivationDrift as ActivationDrift
