"""Where image references come from.

`discovery` turns source rows into changes of the catalog, `instagram` reads the grammar of signed URLs, `app_database`
reads the application's tables (`carousel` one of their columns), `provider` says what whoever delivers fresh URLs is
asked, and `decodo` is the first of them. Nothing here downloads an image.
"""
