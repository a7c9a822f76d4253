"""What predictions become: files, pictures, animations."""
