"""What every family must pass, also a third party's."""
