"""What turns (model, batch) into a loss: the only place where targets are made."""
