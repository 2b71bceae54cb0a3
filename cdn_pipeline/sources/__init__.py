"""Where image references come from.

`discovery` turns source rows into changes of the catalog, `instagram` reads the grammar of signed URLs, `app_database`
reads the application's tables. Nothing here downloads an image.
"""
