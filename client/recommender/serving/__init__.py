"""A fitted recommender that is kept between calls, and recommendations for all users."""
