"""Everything between gmd_ray and Ray: sessions, actor pools, capacity, shutdown."""
