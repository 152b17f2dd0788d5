"""What the training of several tasks on one base needs: their bank, their tasks, and newcomers' starts."""
