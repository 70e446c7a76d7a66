from hopd.cli import main

main()
