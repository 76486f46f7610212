"""Pictures of reports and of drift."""
