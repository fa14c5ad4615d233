"""The routes, by what they are for. `frontend/app.py` puts them together."""
