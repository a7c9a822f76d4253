"""What is learned and how it is measured: each task gives the loop its model, data, losses and figures."""
