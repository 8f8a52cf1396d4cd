"""Evidence: what compression costs in answers, on models small enough to train here."""
