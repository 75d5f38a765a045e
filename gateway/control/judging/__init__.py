"""Judging live answers: a share of them, by the task's own rule or by a model that the platform pays for."""
