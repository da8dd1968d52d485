"""Files of models: what they hold, judged before anything trusts it."""
