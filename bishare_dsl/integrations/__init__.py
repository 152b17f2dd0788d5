"""What lets adapters of bishare into training frameworks that ask for code of one's own."""
