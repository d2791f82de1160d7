"""A described dataset as a picture and as a page: `quintic data info`."""
