"""What others have published, in the layout of the paper's tables. NME and FR in percent, AUC 0 to 1, None: not said.

"paper" is the IACT paper itself, with the rows as it prints them; its rows on other systems are its own quotations
(HRNet's authors, for instance, say 4.60 on WFLW). Later rows name where the numbers stand."""

Row = tuple[float | None, ...]

PAPER = "IACT paper"
SETS = {
    "wflw": ("test", "pose", "expression", "illumination", "make-up", "occlusion", "blur"),
    "300w": ("full", "common", "challenging"),
    "cofw": ("test",),
}
"""The splits, or subsets, that a table has columns for."""

HEADINGS = {
    "wflw": ("Full", "Pose", "Exp.", "Ill.", "Mu.", "Occ.", "Blur"),
    "300w": ("Full", "Com.", "Chal."),
    "cofw": ("Test",),
}

WFLW_NME: tuple[tuple[str, str, Row, Row], ...] = (
    # method, year or source, (parameters in millions, 10^9 multiply-accumulates), NME of the sets
    ("LAB", "CVPR 2018", (12.26, 18.96), (5.27, 10.24, 5.51, 5.23, 5.15, 6.79, 6.32)),
    ("Wing", "CVPR 2018", (None, 25), (4.99, 8.43, 5.21, 4.88, 5.26, 6.21, 5.81)),
    ("MHHN", "TIP 2020", (None, None), (4.77, 9.31, 4.79, 4.72, 4.59, 6.17, 5.82)),
    ("DeCaFA", "ICCV 2019", (10, None), (4.62, 8.11, 4.64, 4.41, 4.63, 5.74, 5.38)),
    ("HRNet", "TPAMI 2020", (9.66, 4.75), (4.65, 7.94, 4.85, 4.55, 5.29, 5.44, 4.86)),
    ("LUVLi", "CVPR 2020", (None, None), (4.37, 7.56, 4.77, 4.30, 4.33, 5.29, 4.94)),
    ("AWing", "ICCV 2019", (24.15, 26.8), (4.36, 7.38, 4.58, 4.32, 4.27, 5.19, 4.96)),
    ("SDFL", "TIP 2019", (None, 5.17), (4.35, 7.42, 4.63, 4.29, 4.22, 5.19, 5.08)),
    ("ADNet", "ICCV 2021", (13.37, 17.04), (4.14, 6.96, 4.38, 4.09, 4.05, 5.06, 4.79)),
    ("SLPT", "CVPR 2022", (19.45, 8.14), (4.12, 6.99, 4.37, 4.02, 4.03, 5.01, 4.79)),
    (PAPER, "2023", (20.29, 6.45), (4.04, 6.54, 3.87, 3.71, 3.42, 4.67, 4.43)),
    ("mmpose HRNetV2-W18, DARK", "mmpose's README", (None, None), (3.98,)),
    ("SPIGA", "BMVC 2022, its README", (None, None), (4.06,)),
    ("STAR", "CVPR 2023, paperswithcode.com", (None, None), (4.02,)),
    ("LDEQ", "CVPR 2023, paperswithcode.com", (None, None), (3.92,)),
    ("TUFA", "IJCV 2025, its README", (None, None), (3.93,)),
    ("ORFormer", "WACV 2025, its README", (None, None), (3.86,)),
)

WFLW_FR: tuple[tuple[str, Row], ...] = (
    ("LAB", (7.56, 28.83, 6.37, 6.73, 7.77, 13.72, 10.74)),
    ("SAN", (6.32, 27.91, 7.01, 4.87, 6.31, 11.28, 6.60)),
    ("HRNet", (4.64, 23.01, 3.50, 4.72, 2.43, 8.29, 6.34)),
    ("LUVLi", (3.12, 15.95, 3.18, 2.15, 3.40, 6.39, 3.23)),
    ("AWing", (2.84, 13.50, 2.23, 2.58, 2.91, 5.98, 3.75)),
    ("SDFL", (2.72, 12.88, 1.59, 2.58, 2.43, 5.71, 3.36)),
    ("SDL", (3.04, 15.95, 2.86, 2.72, 1.45, 5.29, 4.01)),
    ("ADNet", (2.72, 12.72, 2.15, 2.44, 1.94, 5.79, 3.54)),
    ("SLPT", (2.76, 12.27, 2.23, 1.86, 3.40, 5.98, 3.88)),
    (PAPER, (2.61, 8.28, 0.62, 2.14, 2.42, 5.02)),
    ("SPIGA (its README)", (2.08,)),
    ("STAR (paperswithcode.com)", (2.32,)),
)

WFLW_AUC: tuple[tuple[str, Row], ...] = (
    ("LAB", (0.532, 0.235, 0.495, 0.543, 0.539, 0.449, 0.463)),
    ("SAN", (0.536, 0.236, 0.462, 0.555, 0.522, 0.456, 0.493)),
    ("HRNet", (0.524, 0.251, 0.510, 0.533, 0.545, 0.459, 0.452)),
    ("LUVLi", (0.557, 0.310, 0.549, 0.584, 0.588, 0.505, 0.525)),
    ("AWing", (0.572, 0.312, 0.515, 0.578, 0.572, 0.502, 0.512)),
    ("SDFL", (0.576, 0.315, 0.550, 0.585, 0.583, 0.504, 0.515)),
    ("SDL", (0.589, 0.315, 0.566, 0.595, 0.604, 0.524, 0.533)),
    ("ADNet", (0.602, 0.344, 0.523, 0.580, 0.601, 0.530, 0.548)),
    ("SLPT", (0.595, 0.348, 0.574, 0.601, 0.605, 0.515, 0.535)),
    (PAPER, (0.615, 0.409, 0.625, 0.636, 0.619, 0.575, 0.587)),
    ("SPIGA (its README)", (0.6056,)),
    ("STAR (paperswithcode.com)", (0.605,)),
)

COFW: tuple[tuple[str, Row], ...] = (
    # method; inter-ocular NME and FR, inter-pupil NME and FR
    ("LAB", (3.92, 0.39, 5.58, 2.76)),
    ("SDFL", (3.63, 0.00, None, None)),
    ("HRNet", (3.45, 0.2, None, None)),
    ("DAC-CSR", (None, None, 6.03, 4.73)),
    ("Human", (None, None, 5.60, None)),
    ("DCFE", (None, None, 5.27, 7.29)),
    ("MHHN", (None, None, 4.95, 1.78)),
    ("AWing", (None, None, 4.94, 0.99)),
    ("ADNet", (None, None, 4.68, 0.59)),
    ("SLPT", (3.32, 0.00, 4.79, 1.18)),
    (PAPER, (3.12, 0.00, 4.53, 0.21)),
    ("STAR (paperswithcode.com)", (3.21, None, 4.62, None)),
)

W300_NME: tuple[tuple[str, Row], ...] = (
    ("LAB", (3.49, 2.98, 5.19)),
    ("Wing", (3.60, 3.01, 6.01)),
    ("DCFE", (3.24, 2.76, 5.22)),
    ("DeCaFA", (3.39, 2.93, 5.26)),
    ("AWing", (3.07, 2.72, 4.52)),
    ("HRNet", (3.32, 2.87, 5.15)),
    ("LUVLi", (3.23, 2.76, 5.16)),
    ("SDFL", (3.28, 2.88, 4.93)),
    ("ADNet", (2.93, 2.53, 4.58)),
    ("SLPT", (3.17, 2.75, 4.90)),
    (PAPER, (2.82, 2.51, 4.09)),
    ("HRNet (its README)", (3.34, 2.91, 5.11)),
    ("SPIGA (its README)", (2.994, 2.587, 4.662)),
    ("STAR (paperswithcode.com)", (2.87, 2.52, 4.32)),
)
