# ruff: noqa: E501
"""The verdicts: name, options where a file needs some, what it is, and what the adapter must make of it."""

# formats/mri with the mri adapter
MRI = """
ivadomed_rgb_test_file.nii.gz | NIfTI-1 with RGB voxels | refused: colour (RGB) volume
libvips_t00740_tr1_segm.hdr | Analyze 7.5 pair, big-endian, scaled | read: 128 x 128 x 63 voxels of 0.2615 x 0.2615 x 0.242 mm, 16 bit, mean 0.0469595
libvips_t00740_tr1_segm.img | the same pair, named by its voxels | read: 128 x 128 x 63 voxels of 0.2615 x 0.2615 x 0.242 mm, 16 bit, mean 0.0469595
nibabel_anatomical.nii | NIfTI-1, big-endian, LAS | read: 33 x 41 x 25 voxels of 2 x 2 x 2 mm, 16 bit, mean 8401.07
nibabel_csa_slice_norm.dcm | Siemens mosaic | refused: Siemens mosaic (many slices in one picture)
nibabel_example4d.nii.gz | NIfTI-1 of two volumes, LAS | refused: 4-D: several volumes in one file
nibabel_example4d.nii.gz {"volume": "first"} | NIfTI-1 of two volumes, LAS | read: 128 x 96 x 24 voxels of 2 x 2 x 2.2 mm, 16 bit, mean 172.914
nibabel_example4d.nii.gz {"volume": "mean"} | NIfTI-1 of two volumes, LAS | read: 128 x 96 x 24 voxels of 2 x 2 x 2.2 mm, 16 bit, mean 172.908
nibabel_example_nifti2.nii.gz | NIfTI-2 of two volumes | refused: 4-D: several volumes in one file
nibabel_example_nifti2.nii.gz {"volume": 1} | NIfTI-2 of two volumes | read: 32 x 20 x 12 voxels of 2 x 2 x 2.2 mm, 16 bit, mean 451.179
nibabel_functional.nii | NIfTI-1 of 20 volumes, scaled | refused: 4-D: several volumes in one file
nibabel_functional.nii {"volume": 19} | NIfTI-1 of 20 volumes, scaled | read: 17 x 21 x 3 voxels of 4 x 4 x 8 mm, 16 bit, mean 3630.32
nibabel_minc2_4d.mnc | MINC-2 of two volumes, time first | refused: 4-D: several volumes in one file
nibabel_minc2_4d.mnc {"volume": "first"} | the same: the option does not apply | refused: 4-D: several volumes in one file
nibabel_nifti1.hdr | NIfTI-1 header whose .img is not there | refused: a file of the pair is missing
nibabel_philips_mprage.dcm.gz | gzipped DICOM | refused: compressed DICOM file (.dcm.gz)
nibabel_reoriented_anat_moved.nii | NIfTI-1, big-endian float32 | read: 21 x 26 x 22 voxels of 4 x 4 x 4 mm, 32 bit, mean 2725.59
nibabel_row_major.dconn.nii | CIFTI-2 connectivity | refused: surface or connectivity data, no volume
nibabel_scaled+tlrc.BRIK | AFNI pair, scaled, named by its voxels | read: 47 x 54 x 43 voxels of 3 x 3 x 3 mm, 16 bit, mean 0.000239196
nibabel_scaled+tlrc.HEAD | AFNI pair, scaled | read: 47 x 54 x 43 voxels of 3 x 3 x 3 mm, 16 bit, mean 0.000239196
nibabel_slicethickness_empty_string.dcm | DICOM slice, JPEG 2000, empty SliceThickness; a projection (MIP) | refused: derived series (parameter map, projection or reformat)
nibabel_slicethickness_empty_string.dcm {"derived": true} | the same, admitted | read: 384 x 384 px of 0.5208 x 0.5208 mm, 12 bit, mean 31.3742
nibabel_small.mnc | MINC-2, stored z y x, slice-wise scaling | read: 29 x 28 x 18 voxels of 7 x 8 x 9 mm, 16 bit, mean 31.2128
nibabel_standard.nii.gz | NIfTI-1 with two values | refused: a mask or label map (at most 16 whole-numbered values)
nibabel_test.mgz | FreeSurfer MGH of two volumes | refused: 4-D: several volumes in one file
pydicom_693_J2KI.dcm | DICOM CT, JPEG 2000 lossy, signed | refused: DICOM modality CT, not MR
pydicom_693_J2KI.dcm {"modalities": ["CT"]} | DICOM CT, JPEG 2000 lossy, signed, with padding | read: 512 x 512 px of 0.4785 x 0.4785 mm, 14 bit, mean -1034.15
pydicom_J2K_pixelrep_mismatch.dcm | DICOM CT whose header and code stream disagree about the sign | refused: DICOM modality CT, not MR
pydicom_JPEG-lossy.dcm | DICOM secondary capture, 12-bit JPEG | refused: secondary capture (a screenshot or scanned image)
pydicom_JPEG2000.dcm | DICOM secondary capture, JPEG 2000 | refused: secondary capture (a screenshot or scanned image)
pydicom_JPGExtended.dcm | DICOM secondary capture, 12-bit JPEG | refused: secondary capture (a screenshot or scanned image)
pydicom_MR_small.dcm | DICOM MR slice, explicit little-endian | read: 64 x 64 px of 0.3125 x 0.3125 mm, 16 bit, mean 518.881
pydicom_MR_small_RLE.dcm | the same, RLE | read: 64 x 64 px of 0.3125 x 0.3125 mm, 16 bit, mean 518.881
pydicom_MR_small_expb.dcm | the same, big-endian | read: 64 x 64 px of 0.3125 x 0.3125 mm, 16 bit, mean 518.881
pydicom_MR_small_implicit.dcm | the same, implicit | read: 64 x 64 px of 0.3125 x 0.3125 mm, 16 bit, mean 518.881
pydicom_MR_small_jpeg_ls_lossless.dcm | the same, JPEG-LS | read: 64 x 64 px of 0.3125 x 0.3125 mm, 16 bit, mean 518.881
pydicom_MR_small_padded.dcm | the same, padding after the pixels | read: 64 x 64 px of 0.3125 x 0.3125 mm, 16 bit, mean 518.881
pydicom_SC_rgb_jpeg_dcmd.dcm | DICOM secondary capture, RGB | refused: secondary capture (a screenshot or scanned image)
pydicom_SC_rgb_rle_16bit_2frame.dcm | DICOM secondary capture, RGB, 16 bit, two frames, RLE | refused: secondary capture (a screenshot or scanned image)
pydicom_SC_rgb_small_odd_big_endian.dcm | DICOM secondary capture, 3 x 3 px, big-endian | refused: secondary capture (a screenshot or scanned image)
pydicom_SC_ybr_full_422_uncompressed.dcm | DICOM secondary capture, YBR_FULL_422 | refused: secondary capture (a screenshot or scanned image)
pydicom_badVR.dcm | DICOM dose whose NumberOfFrames is no number | refused: DICOM modality RTDOSE, not MR
pydicom_examples_jpeg2k.dcm | DICOM ultrasound, JPEG 2000 colour | refused: DICOM modality US, not MR
pydicom_examples_overlay.dcm | DICOM MR reformation with overlay planes, which are not drawn | refused: derived series (parameter map, projection or reformat)
pydicom_examples_palette.dcm | DICOM ultrasound, palette | refused: DICOM modality US, not MR
pydicom_examples_rgb_color.dcm | DICOM ultrasound, RGB | refused: DICOM modality US, not MR
pydicom_examples_ybr_color.dcm | DICOM ultrasound, 30 frames, JPEG | refused: DICOM modality US, not MR
pydicom_image_dfl.dcm | DICOM secondary capture, deflated | refused: secondary capture (a screenshot or scanned image)
pydicom_liver_1frame.dcm | DICOM segmentation, 1 bit | refused: DICOM modality SEG, not MR
pydicom_no_meta.dcm | a CT data set behind a stray byte, without preamble | refused: not a readable DICOM file
pydicom_rtdose.dcm | DICOM dose grid, 32 bit | refused: DICOM modality RTDOSE, not MR
"""

# formats/galaxy with the galaxy adapter
GALAXY = """
astropy_comp.fits | Rice-compressed | read: 440 x 300 px, 7 arcsec, 16 bit, bands unnamed, mean 260.741
astropy_compressed_image.fits | Rice-compressed, 10 x 10 px | refused: a side of less than 16 pixels
astropy_lzw.fits.Z | compressed by Unix compress | refused: compressed by Unix compress (.Z)
astropy_m13_hcomp.fits | Hcompress-compressed | read: 300 x 300 px, 1 arcsec, 16 bit, bands unnamed, mean 147.704
astropy_random_groups.fits | random groups | refused: random groups (interferometer visibilities), not an image
astropy_scale.fits | int16, BSCALE and BZERO | read: 20 x 21 px, 5 arcsec, 16 bit, bands H, mean 531.435
astropy_test1.fits | four extensions SCI | refused: several images in one file that are not named as bands
astropy_variable_length_table.fits | a table | refused: only tables, no image
libvips_WFPC2u5780205r_c0fx.fits | a cube of four detectors (HST) | refused: 4 planes whose bands the header does not name
libvips_WFPC2u5780205r_c0fx.fits {"bands": "a,b,c,d"} | a cube of four detectors (HST) | read: 200 x 200 px, 0.0455 arcsec, 32 bit, bands a,b,c,d, mean 0.947455
"""

# formats/galaxy_cutouts with the galaxy adapter
CUTOUTS = """
GDS_deep2_10006_h.fits | one HST band in electrons/s | read: 84 x 84 px, 0.06 arcsec, 32 bit, bands F160W, mean 0.00195648
mzlsbass2__k4m_160319_075112_ooi_zd_ls9.CCD3.fits | MzLS exposure (Rice-compressed) | read: 204 x 208 px, 0.26 arcsec, 32 bit, bands zd, mean 54.0582
mzlsbass2__ksb_180313_081856_ooi_g_ls9.CCD4.fits | BASS exposure (Rice-compressed) | read: 118 x 119 px, 0.454 arcsec, 32 bit, bands g, mean 5.74727
mzlsbass3__k4m_160311_103249_ooi_zd_v2-ccd3.fits | MzLS exposure | read: 103 x 103 px, 0.26 arcsec, 32 bit, bands zd, mean 63.1764
mzlsbass3__ksb_160203_115029_ooi_r_v1-ccd2.fits | BASS exposure | read: 60 x 60 px, 0.453 arcsec, 32 bit, bands bokr, mean 12.276
mzlsbass3__ksb_160203_125658_ooi_r_v1-ccd2.fits | BASS exposure | read: 60 x 59 px, 0.453 arcsec, 32 bit, bands bokr, mean 12.3817
mzlsbass3__ksb_160704_043617_ooi_g_v1-ccd2.fits | BASS exposure | read: 59 x 60 px, 0.452 arcsec, 32 bit, bands g, mean 4.47718
mzlsbass3__ksb_160704_044416_ooi_g_v1-ccd2.fits | BASS exposure | read: 59 x 59 px, 0.452 arcsec, 32 bit, bands g, mean 4.43375
testcase12__c4d_170916_045042_ooi_r_ls9.N15.fits | DECam exposure | read: 101 x 100 px, 0.262 arcsec, 32 bit, bands r, mean 370.995
testcase3__c4d_140818_232043_ooi_z_ls9.N12.fits | DECam exposure | read: 41 x 51 px, 0.262 arcsec, 32 bit, bands z, mean 2939.99
testcase3__c4d_150329_083505_ooi_g_ls9.N11.fits | DECam exposure | read: 41 x 51 px, 0.262 arcsec, 32 bit, bands g, mean 106.901
testcase3__c4d_150412_073257_ooi_z_ls9.N11.fits | DECam exposure | read: 41 x 51 px, 0.262 arcsec, 32 bit, bands z, mean 2028.21
testcase3__c4d_180518_044138_ooi_r_ls9.N12.fits | DECam exposure | read: 41 x 51 px, 0.262 arcsec, 32 bit, bands r, mean 257.578
testcase3__c4d_180809_002630_ooi_g_ls9.N12.fits | DECam exposure | read: 41 x 51 px, 0.262 arcsec, 32 bit, bands g, mean 106.757
testcase4__c4d_170316_062107_ooi_z_ls9.N2.fits | DECam exposure | read: 245 x 251 px, 0.262 arcsec, 32 bit, bands z, mean 3175.88
testcase6__c4d_150110_053718_ooi_z_ls9.S4.fits | DECam exposure | read: 100 x 100 px, 0.262 arcsec, 32 bit, bands z, mean 7987.76
testcase6__c4d_181104_072440_ooi_g_ls9.S4.fits | DECam exposure | read: 101 x 100 px, 0.262 arcsec, 32 bit, bands g, mean 5927.59
testcase6__c4d_181214_050844_ooi_g_ls9.S9.fits | DECam exposure | read: 101 x 101 px, 0.262 arcsec, 32 bit, bands g, mean 7386.1
testcase6__c4d_181215_051332_ooi_r_ls9.S9.fits | DECam exposure | read: 101 x 101 px, 0.262 arcsec, 32 bit, bands r, mean 4325.84
testcase7__c4d_150110_053718_ooi_z_ls9.S11.fits | DECam exposure | read: 100 x 100 px, 0.262 arcsec, 32 bit, bands z, mean 6315.96
testcase9__c4d_131122_030338_ood_z_ls9.S21.fits | data-quality mask of an exposure | refused: a weight map, mask or model, by the survey's file name
testcase9__c4d_131122_030338_oow_z_ls9.S21.fits | weight map of an exposure: only its name says so | refused: a weight map, mask or model, by the survey's file name
testcase9__c4d_141029_043225_ooi_g_ls9.N26.fits | DECam exposure | read: 101 x 101 px, 0.262 arcsec, 32 bit, bands g, mean 164.424
testcase9__c4d_141029_043225_oow_g_ls9.N26.fits | weight map of an exposure: only its name says so | refused: a weight map, mask or model, by the survey's file name
testcase9__c4d_141029_043420_ood_r_ls9.N26.fits | data-quality mask of an exposure | refused: a weight map, mask or model, by the survey's file name
testcase9__c4d_141029_043420_ooi_r_ls9.N26.fits | DECam exposure | read: 101 x 100 px, 0.262 arcsec, 32 bit, bands r, mean 464.456
"""

# formats/histo with the histology adapter
TILES = """
highdicom_seg_image_sm_control_labelmap_palette_color.dcm | DICOM segmentation of a slide, palette | refused: DICOM of another kind than whole-slide microscopy
libvips_1.webp | WebP, lossy | read: 550 x 368 px, mean 95.9791
libvips_1bit.tif | TIFF, 1 bit, 256 x 4 px | refused: tile under 32 pixels wide or high
libvips_3.jpg | JPEG, EXIF orientation 3 | read: 308 x 410 px, mean 109.1
libvips_4bit.tif | TIFF, 4 bits, 256 x 4 px | refused: tile under 32 pixels wide or high
libvips_6.jpg | JPEG, EXIF orientation 6 | read: 231 x 308 px, mean 109.438
libvips_8.jpg | JPEG, EXIF orientation 8 | read: 231 x 308 px, mean 109.421
libvips_CMU-1-Small-Region.svs | Aperio slide with thumbnail, label and macro | read: 2220 x 2967 px of 0.499 um, mean 205.575
libvips_avif-orientation-6.avif | AVIF, rotated by its container | refused: not a format that the histology adapter reads
libvips_cramps.gif | GIF, palette | refused: not a format that the histology adapter reads
libvips_ojpeg-tile.tif | TIFF, old-style JPEG (only libtiff reads it: no second opinion) | read: 234 x 213 px, mean 58.0294
libvips_sample.tif | TIFF, RGB, 16 bits | refused: image with 16 bits a channel
openslide_boxes_0.dcm | DICOM slide, 16 x 16 px | refused: slide smaller than one region
openslide_small.svs | Aperio slide, 16 x 16 px | refused: slide smaller than one region
openslide_unopenable.tiff | TIFF, unknown compression | refused: not an image that Pillow can read
openslide_unreadable.svs | Aperio slide, 16 x 16 px, damaged | refused: slide smaller than one region
pillow_12bit.cropped.tif | TIFF, grey, 12 bits packed | refused: image with 12 bits a channel
pillow_16bit.cropped.jp2 | JPEG 2000, grey, 16 bits | refused: not a format that the histology adapter reads
pillow_16bit.cropped.tif | TIFF, grey, 16 bits | refused: image with 16 bits a channel
pillow_broken.png | PNG, damaged header | refused: not an image that Pillow can read
pillow_broken_data_stream.png | PNG, damaged pixels | refused: image whose pixels are damaged or cut off
pillow_decompression_bomb.gif | GIF that claims 4.4 gigapixels | refused: not a format that the histology adapter reads
pillow_hopper.Lab.tif | TIFF, CIELAB | refused: CIELAB image
pillow_hopper.iccprofile.tif | TIFF with ICC profile | read: 128 x 128 px, mean 88.3911
pillow_hopper_bigtiff.tif | BigTIFF | read: 128 x 128 px, mean 88.3911
pillow_hopper_jpg.tif | TIFF, JPEG | read: 128 x 128 px, mean 88.3876
pillow_hopper_lzw.tif | TIFF, LZW | read: 128 x 128 px, mean 88.3911
pillow_hopper_orientation_6.jpg | JPEG, EXIF orientation 6 | read: 128 x 128 px, mean 88.3622
pillow_hopper_orientation_8.jpg | JPEG, EXIF orientation 8 | read: 128 x 128 px, mean 88.3622
pillow_hopper_webp_write.ppm | PPM | refused: not a format that the histology adapter reads
pillow_multipage_out_of_order.tiff | TIFF of three pages | refused: tile under 32 pixels wide or high
pillow_p_trns_single.png | PNG, palette with a transparent entry | read: 64 x 64 px, mean 155.654
pillow_tiff_adobe_deflate.tif | TIFF, deflate | read: 278 x 374 px, mean 161.78
pillow_tiff_strip_cmyk_jpeg.tif | TIFF, CMYK, JPEG | refused: CMYK image, whose colours depend on a printing profile
pillow_tiff_strip_ycbcr_jpeg_2x2_sampling.tif | TIFF, YCbCr JPEG in strips, subsampled | read: 480 x 360 px, mean 115.132
pillow_tiff_tiled_planar_raw.tif | TIFF, tiled, planes apart | read: 278 x 374 px, mean 161.78
pillow_truncated_jpeg.jpg | JPEG, truncated | refused: image whose pixels are damaged or cut off
"""

# formats/slides with the histology adapter
SLIDES = """
highdicom_sm_image.dcm | DICOM slide, 50 x 50 px | refused: no tissue found on the slide
highdicom_sm_image_jpegls_nobot.dcm | DICOM slide, JPEG-LS | refused: slide that openslide cannot open
openslide_boxes.tiff | pyramidal TIFF of coloured boxes, 353 um per px | refused: mpp out of range
openslide_boxes_0.dcm | DICOM slide, 16 x 16 px | refused: slide smaller than one region
openslide_boxes_1.dcm | DICOM slide, 16 x 16 px | refused: slide smaller than one region
"""

# formats/histo with the images adapter
IMAGES = """
highdicom_seg_image_sm_control_labelmap_palette_color.dcm | DICOM segmentation of a slide, palette | refused: not a format that the images adapter reads
libvips_1.webp | WebP, lossy | read: 550 x 368 px, 8 bit, 3 channels, mean 95.9791
libvips_1bit.tif | TIFF, 1 bit, 256 x 4 px | refused: a side of less than 16 pixels
libvips_3.jpg | JPEG, EXIF orientation 3 | read: 308 x 410 px, 8 bit, 3 channels, mean 109.1
libvips_4bit.tif | TIFF, 4 bits, 256 x 4 px | refused: a side of less than 16 pixels
libvips_6.jpg | JPEG, EXIF orientation 6 | read: 231 x 308 px, 8 bit, 3 channels, mean 109.438
libvips_8.jpg | JPEG, EXIF orientation 8 | read: 231 x 308 px, 8 bit, 3 channels, mean 109.421
libvips_CMU-1-Small-Region.svs | Aperio slide with thumbnail, label and macro | refused: not a format that the images adapter reads
libvips_avif-orientation-6.avif | AVIF, rotated by its container | read: 3024 x 4032 px, 8 bit, 3 channels, mean 122.916
libvips_cramps.gif | GIF, palette | read: 159 x 203 px, 8 bit, 3 channels, mean 118.965
libvips_ojpeg-tile.tif | TIFF, old-style JPEG (only libtiff reads it: no second opinion) | read: 234 x 213 px, 8 bit, 3 channels, mean 58.0294
libvips_sample.tif | TIFF, RGB, 16 bits | refused: uint16 values, which have no natural range
libvips_sample.tif {"intensity": "window", "intensity_range": [0, 65535]} | TIFF, RGB, 16 bits | read: 290 x 442 px, 16 bit, 3 channels, mean 30498.2
openslide_boxes_0.dcm | DICOM slide, 16 x 16 px | refused: not a format that the images adapter reads
openslide_small.svs | Aperio slide, 16 x 16 px | refused: not a format that the images adapter reads
openslide_unopenable.tiff | TIFF, unknown compression | refused: a side of less than 16 pixels
openslide_unreadable.svs | Aperio slide, 16 x 16 px, damaged | refused: not a format that the images adapter reads
pillow_12bit.cropped.tif | TIFF, grey, 12 bits packed | refused: uint16 values, which have no natural range
pillow_12bit.cropped.tif {"intensity": "window", "intensity_range": [0, 4095]} | TIFF, grey, 12 bits packed | read: 100 x 100 px, 16 bit, 1 channels, mean 2.5882
pillow_16bit.cropped.jp2 | JPEG 2000, grey, 16 bits | refused: uint16 values, which have no natural range
pillow_16bit.cropped.jp2 {"intensity": "percentile", "channels": 1} | JPEG 2000, grey, 16 bits | read: 64 x 64 px, 16 bit, 1 channels, mean 384.113
pillow_16bit.cropped.tif | TIFF, grey, 16 bits | refused: uint16 values, which have no natural range
pillow_16bit.cropped.tif {"intensity": "percentile"} | TIFF, grey, 16 bits | read: 64 x 64 px, 16 bit, 1 channels, mean 384.113
pillow_broken.png | PNG, damaged header | refused: not a picture in a known format, or a damaged header
pillow_broken_data_stream.png | PNG, damaged pixels | refused: damaged or truncated picture
pillow_decompression_bomb.gif | GIF that claims 4.4 gigapixels | refused: more than 89 million pixels
pillow_hopper.Lab.tif | TIFF, CIELAB | refused: LAB pixels, whose RGB values depend on a colour profile
pillow_hopper.iccprofile.tif | TIFF with ICC profile | read: 128 x 128 px, 8 bit, 3 channels, mean 88.3911
pillow_hopper_bigtiff.tif | BigTIFF | read: 128 x 128 px, 8 bit, 3 channels, mean 88.3911
pillow_hopper_jpg.tif | TIFF, JPEG | read: 128 x 128 px, 8 bit, 3 channels, mean 88.3876
pillow_hopper_lzw.tif | TIFF, LZW | read: 128 x 128 px, 8 bit, 3 channels, mean 88.3911
pillow_hopper_orientation_6.jpg | JPEG, EXIF orientation 6 | read: 128 x 128 px, 8 bit, 3 channels, mean 88.3622
pillow_hopper_orientation_8.jpg | JPEG, EXIF orientation 8 | read: 128 x 128 px, 8 bit, 3 channels, mean 88.3622
pillow_hopper_webp_write.ppm | PPM | read: 128 x 128 px, 8 bit, 3 channels, mean 88.4721
pillow_multipage_out_of_order.tiff | TIFF of three pages | refused: several frames or pages in one file
pillow_p_trns_single.png | PNG, palette with a transparent entry | refused: transparent pixels
pillow_tiff_adobe_deflate.tif | TIFF, deflate | read: 278 x 374 px, 8 bit, 3 channels, mean 161.78
pillow_tiff_strip_cmyk_jpeg.tif | TIFF, CMYK, JPEG, no profile: ideal inks | read: 100 x 100 px, 8 bit, 3 channels, mean 14.3526
pillow_tiff_strip_ycbcr_jpeg_2x2_sampling.tif | TIFF, YCbCr JPEG in strips, subsampled | read: 480 x 360 px, 8 bit, 3 channels, mean 115.132
pillow_tiff_tiled_planar_raw.tif | TIFF, tiled, planes apart | read: 278 x 374 px, 8 bit, 3 channels, mean 161.78
pillow_truncated_jpeg.jpg | JPEG, truncated | refused: damaged or truncated picture
"""
