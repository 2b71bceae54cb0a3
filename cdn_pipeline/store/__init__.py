"""Where bytes live: renditions and originals, in R2 or in a folder.

`objects` is the object store itself, `folder` the one on files, `originals` the private, content-addressed store on top
of one, `keys` the one place where keys, paths and public URLs are made. No SQL, and no policy: what is stored, verified
or removed when is decided by those who call.
"""
