"""What is learned from data: statistics, regressions, distillation."""
