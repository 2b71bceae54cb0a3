"""What an operator or a schedule does to the whole collection, such as rolling out a recipe.

Here belong operations over many images that are not one image's way through the stream. Every transition of an image
or a job is still the queue's; no Dagster, no HTTP.
"""
