"""HTTP downloads: the client, which addresses it may dial, how often it may ask a host.

What comes in is a URL, what goes out is bytes that begin like an image, or an `ImageFailure`. No catalog, no retries
(the queue decides those), no image is decoded here.
"""
