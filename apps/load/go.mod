module checksync/apps/load

go 1.26

require checksync/apps/judge v0.0.0

require github.com/anishathalye/porcupine v1.3.1 // indirect

replace checksync/apps/judge => ../judge
