"""A machine, tried: short runs on drawn images through the launcher, and which promises they were seen to keep."""
