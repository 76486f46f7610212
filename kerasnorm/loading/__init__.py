"""Model files in, with what had to be repaired on the way."""

from kerasnorm.loading.load import load_model as load_model
from kerasnorm.loading.load import load_report as load_report
