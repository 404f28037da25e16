module checksync/apps/hazards

go 1.26
