"""Keras models as ONNX files that were run and compared before they were kept."""

from kerasnorm.onnx.export import OnnxExport as OnnxExport
from kerasnorm.onnx.export import export_onnx as export_onnx
