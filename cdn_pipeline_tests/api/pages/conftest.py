"""The browser, for every test of the pages."""

from cdn_pipeline_tests.api.pages.browser import browser

__all__ = ["browser"]
