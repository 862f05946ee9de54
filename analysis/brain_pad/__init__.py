"""Brain-PAD from tables of ages: correction, intervals, agreement, dementia."""
