"""The command line. `app` declares the commands and loads nothing heavy; each body is imported when it runs."""
