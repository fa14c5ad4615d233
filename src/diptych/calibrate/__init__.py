"""`diptych calibrate`: how long this machine takes for a model's steps, as a profile that predictions are made from."""
