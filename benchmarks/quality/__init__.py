"""Which encoder settings and which resampler are worth it: bytes, CPU time and quality on real photographs.

Here is what decides about a recipe, never what makes renditions: everything is compared with the present recipe. The
study's own tools (libvips, SSIMULACRA2, Matplotlib) are installed into a folder outside of the project's environment;
Pillow is the project's.
"""
